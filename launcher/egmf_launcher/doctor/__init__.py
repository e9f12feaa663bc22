"""``egmf doctor``: what a training would meet on these machines, found before it begins.

One program (:mod:`.probe`) says the facts of a machine; it runs here, and through ssh on every other host. Checks are
small functions that judge them, or try something of their own (a real all-reduce); :data:`.table.CHECKS` lists all.
"""
