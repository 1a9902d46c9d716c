"""What a right answer must satisfy: a lesson's problems in `lessonNN.py` and `lessonNN_*.py`.

Under them, in order: `properties` (what a specification yields), `watched` (a learner's function as it is called) and
`problems` (registered, found and run). `draws` and `predictions` are what several lessons share.
"""
