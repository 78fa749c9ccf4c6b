"""OpenAI's APIs as clients use them: completions, chat completions and responses.

Each is one `Api`: the form of its request, and the translation of pieces into its answer.
"""
