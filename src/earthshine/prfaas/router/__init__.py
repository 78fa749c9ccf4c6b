"""What the router knows and decides, without input or output and without a clock: times are given.

`places` reads what the operator configured, `blocks` and `prefix_index` say what a place has cached, `learned` how fast
it is, `circuit` whether it works, and `live` joins them into the state that `decide` reads.
"""
