"""Which evaluations of geometry there are: one line for the help of each, and the data it takes."""

KINDS = {
    "match": "recall of tokens' nearest neighbours in a transformed view; keypoints of SPair-71k",
    "segment": "classes of pixels by a linear head and by retrieval: mIoU",
    "clusters": "classes of clusters of tokens, found without labels: mIoU",
    "depth": "depths of pixels by a linear head: RMSE, AbsRel, δ",
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
    "segment": "masks",
    "clusters": "masks",
    "depth": "depth",
}
"""What --data of each holds; `fastequi eval all` runs those whose data it is given."""
