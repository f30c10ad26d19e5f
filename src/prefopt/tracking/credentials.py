"""Which W&B server is meant, and whether there is a key for it. No key is read into a variable, let alone kept."""

import configparser
import netrc
import os
from pathlib import Path
from urllib.parse import urlparse

CLOUD = "https://api.wandb.ai"


def base_url() -> str:
    """Address of the W&B server: as the environment says, else as `wandb login --host` has noted."""
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
