"""Which W&B server is used, and whether there is an API key for it. The key itself is never kept in a variable."""

import configparser
import netrc
import os
from pathlib import Path
from urllib.parse import urlparse

CLOUD = "https://api.wandb.ai"


def base_url() -> str:
    """Address of the W&B server: from WANDB_BASE_URL, else as saved by `wandb login --host`, else W&B's cloud."""
    chosen = os.environ.get("WANDB_BASE_URL")
    if chosen:
        return chosen
    folder = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read(folder / "settings", encoding="utf-8")
    except (OSError, UnicodeDecodeError, configparser.Error):
        return CLOUD
    return settings.get("default", "base_url", fallback=CLOUD)


def has_api_key() -> bool:
    """True if the environment or the user's netrc file holds a key for `base_url`."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(str(path)).authenticators(urlparse(base_url()).hostname or "") is not None
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        return False
