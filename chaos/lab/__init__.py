"""The lab: the whole cluster as real processes on loopback, in one folder, gone without a trace when it is taken down.

`names` knows what there is, `layout` where it lies, `render` what is written, `ledger` what was started (pure or
nearly so); `process`, `seed`, `health` and `build` do it.
"""
