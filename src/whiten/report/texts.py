"""Headings and explanations of a report."""

from __future__ import annotations

# Heading and explanation of each plot, in the order of the page.
SECTIONS = {
    "results": (
        "Accuracy",
        "Longer is better. The dark line is the 95 % interval; if the intervals of two encoders "
        "overlap much, their difference may be chance.",
    ),
    "accuracy_latency": (
        "Accuracy and speed",
        "The best encoder is at the top left, accurate and fast. The area of a mark grows with the "
        "number of parameters; the line through it is the 95 % interval.",
    ),
    "similarities": (
        "Similarities before and after whitening",
        "Teachers can be fused only if their histograms cover the same range. Whitening should "
        "achieve that, and keep green (same thing) apart from orange (different things).",
    ),
    "spectra": (
        "Spectra",
        "The steeper a line, the fewer axes decide a teacher's raw similarities. The effective "
        "rank estimates their number.",
    ),
    "whitening_choices": (
        "Strength of the whitening",
        "Left is PCA-whitening, right is centring alone. The dot is the choice: of all that score "
        "within one standard error of the best on held-out images, the nearest to 1. A flat line "
        "means that the choice hardly matters.",
    ),
    "wins": (
        "Which teacher decides",
        "How often each teacher set the target similarity of a positive pair. With a line near "
        "100 % the student learns from one teacher alone.",
    ),
    "held_out": (
        "What training gains",
        "Images that never train the student measure it after each epoch; the best point is kept. "
        "Level lines are its starts: below the highest of them training gains nothing.",
    ),
    "loss": (
        "Training",
        "The loss should fall and flatten. Its height can be compared only between runs with the "
        "same teachers, fusion and batch size.",
    ),
}
TABLE_HELP = "The best mAP is bold; brackets hold the 95 % interval over the queries."
RETRIEVALS_HELP = (
    "Queries with the best, the median and the worst average precision. Green with ✓ is right, "
    "orange with ✗ is wrong; the number is the similarity."
)
