"""OpenAI's APIs as clients speak them: completions, chat completions and responses.

Each module is one `Api`: the form of its request, and the translation of pieces into its answer.
"""
