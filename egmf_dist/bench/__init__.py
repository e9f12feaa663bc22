"""What reading costs: ``egmf bench data`` measures this project's reader beside other libraries' on the same samples.

:mod:`.samples` generates them, :mod:`.environments` builds a pinned environment for each library, ``peers/`` holds one
script a library, :mod:`.data` runs the scripts in alternation and puts the figures together.
"""
