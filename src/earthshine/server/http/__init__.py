"""How requests come in and answers go out: sockets, limits, keys, streams, and what is served beside the APIs.

`app.make_app` joins the parts and `run.Service` gives them a socket; neither knows any API's words.
"""
