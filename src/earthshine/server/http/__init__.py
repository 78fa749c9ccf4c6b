"""HTTP, whatever the API: routes, limits, access, streams, metrics, and the page.

`app.make_app` makes the application and `run.Service` serves it on a socket. The APIs are passed in as `Api` values.
"""
