"""From rows to a trained model:

tables.py    a CSV or Parquet file as an Arrow table
features.py  columns -> feature contract: kinds, vocabularies, what becomes of missing values
targets.py   the label column -> what is learnt: classes or a number
train.py     the built-in recipe: time-ordered split, early stopping, fixed seeds
"""
