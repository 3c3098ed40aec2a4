"""The texts of a report: what its sections are called and say, and the page around them."""

from __future__ import annotations

# What each figure is called and how to read it, in the order of the page.
SECTIONS = {
    "results": (
        "Accuracy",
        "Longer is better; the dark line is the 95 % interval, and where the intervals of two "
        "encoders overlap much, the difference may be chance.",
    ),
    "accuracy_latency": (
        "Accuracy and speed",
        "The best encoder is at the top left, accurate and fast; the mark's area grows with the "
        "parameters, and the line through it is the 95 % interval.",
    ),
    "similarities": (
        "Similarities before and after whitening",
        "Teachers can only be compared where their histograms lie over the same range: whitening "
        "should bring them there, and keep green (same thing) apart from orange (another).",
    ),
    "spectra": (
        "Spectra",
        "The steeper a line, the fewer axes decide a teacher's raw similarities; the effective "
        "dimension says about how many.",
    ),
    "whitening_choices": (
        "How much whitening each teacher got",
        "Left is PCA-whitening, right plain centring; the dot is what did best on images that were "
        "held out. A flat line means that the choice hardly matters.",
    ),
    "wins": (
        "Which teacher is heard",
        "How often each teacher gave the similarity that a positive pair was trained on: a line "
        "near 100 % drowns out the others.",
    ),
    "loss": (
        "Training",
        "The loss should fall and flatten; its height can be compared only between runs with the "
        "same teachers, fusion and batch size.",
    ),
}
TABLE_HELP = "The best mAP is bold; in brackets stands its 95 % interval over the queries."
RETRIEVALS_HELP = (
    "Queries with the best, the median and the worst average precision: green with ✓ is right, "
    "orange with ✗ is wrong, and the number is the similarity."
)
