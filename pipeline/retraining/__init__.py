"""From rows to a trained model, and whether it may replace the one at work:

tables.py    a CSV or Parquet file as an Arrow table
features.py  columns -> feature contract: kinds, vocabularies, what becomes of missing values
targets.py   the label column -> what is learnt: classes or a number
train.py     the built-in recipe: time-ordered split, early stopping, fixed seeds
warm.py      a warm start on data that has moved: statistics set anew, the function kept
window.py    labelled events of the log: which ones, where they lie, joined with what became of them
split.py     a window cut in time: fit, stopping, purged, newest
recipes.py   what makes a successor: the built-in recipe, or a function of the user's own
guards.py    whether a window is fit to learn from
executor.py  a command within limits of time and memory
findings.py  what one check found
gate.py      may the challenger replace the champion?
calibrating.py a calibrator on trial: fitted on older outcomes, judged by the newest
comparing.py losses of both on the same rows, and bounds of their difference
latency.py   how long a batch takes each of the two
trial.py     what becomes of a canary, and of a fresh champion
sequential.py a mean, and bounds that hold however often it is looked at
reports.py   the verdict as a record of NAME.retraining-reports
"""
