"""Which evaluations of geometry there are, each with one line for the help."""

KINDS = {
    "match": "recall of tokens' nearest neighbours in a transformed view; keypoints of SPair-71k",
    "homography": "errors of homographies estimated from tokens, of made views or HPatches",
}
