"""Pictures and pages: `fastequi visualize` and `fastequi report`; figures come from evaluate/."""
