"""A web page and a JSON API for a fine-tuned model. Requires `pip install 'torch-finetune[serve]'`."""

from finetune.errors import ArgumentError

try:
    from finetune.serve.app import create_app
    from finetune.serve.server import serve
    from finetune.serve.uploads import Limits
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("flask", "waitress", "prometheus_client", "werkzeug"):
        raise
    raise ArgumentError(
        f"Serving requires {error.name}, which is not installed. Install it with: pip install 'torch-finetune[serve]'"
    ) from error

__all__ = ["Limits", "create_app", "serve"]
