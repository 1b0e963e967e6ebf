"""Which evaluations of geometry there are: one line for the help of each, and the data it takes."""

KINDS = {
    "match": "recall of tokens' nearest neighbours in a transformed view; keypoints of SPair-71k",
    "propagate": "J and F of masks carried through videos by the similarity of tokens",
    "homography": "errors of homographies estimated from tokens, of made views or HPatches",
    "layers": "how equivariant and how invariant the tokens of every block are",
    "position": "R² of a token's own place, before and after it is projected out",
}

DATA = {
    "match": "photographs",
    "propagate": "clips",
    "homography": "photographs",
    "layers": "photographs",
    "position": "photographs",
}
"""What --data of each holds; `fastequi eval all` runs those whose data it is given."""
