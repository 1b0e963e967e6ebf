"""Which evaluations of geometry there are, each with one line for the help."""

KINDS = {
    "match": "recall of tokens' nearest neighbours in a transformed view; keypoints of SPair-71k",
    "propagate": "J and F of masks carried through videos by the similarity of tokens",
    "homography": "errors of homographies estimated from tokens, of made views or HPatches",
}
