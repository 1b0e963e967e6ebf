"""`fastequi demo`: pretrain on nine photographs, then judge the features where they are new.

Training sees the left 70 % of every photograph, the probes' test pairs come from the right 30 %.
"""

from __future__ import annotations

TRAIN_REGION = (0.0, 0.0, 0.7, 1.0)
TEST_REGION = (0.7, 0.0, 1.0, 1.0)
"""Parts (x0, y0, x1, y1) of each photograph, as fractions of its width and height."""
