"""Answers over HTTP: ``egmf serve``. A model in one thread, strangers' clips in processes of their own, one page.

``app`` is the ASGI application (FastAPI), which uvicorn serves (``server``) or Ray Serve (the launcher's). Needs the
extras ``serve`` and ``media``.
"""
