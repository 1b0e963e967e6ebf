"""Which evaluations of geometry there are, each with one line for the help."""

KINDS = {
    "match": "recall of tokens' nearest neighbours in a transformed view",
    "segment": "classes of pixels by a linear head and by retrieval: mIoU",
    "clusters": "classes of clusters of tokens, found without labels: mIoU",
    "depth": "depths of pixels by a linear head: RMSE, AbsRel, δ",
}
