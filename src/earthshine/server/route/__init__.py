"""The router: an OpenAI- and Anthropic-compatible front for several servers, which decides where each request goes.

Bodies and events pass through unchanged, and no tensor passes through it. A place is named by the operator; a request
that names one is refused. The decision itself is `prfaas/router`. Without torch.
"""
