"""What a right answer must satisfy: a lesson's problems in `lessonNN.py` and `lessonNN_*.py`."""
