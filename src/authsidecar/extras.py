"""How one of our extras is installed.

The package is in no registry: whoever registered its name there would have our users install
theirs. So no message and no page names it to an installer, only a checkout or a wheel's file.
"""

from typing import Final

FROM_SOURCE: Final = "pip install '.[{extra}]' in a checkout, pip install 'FILE.whl[{extra}]' else"


def command(extra: str) -> str:
    """What installs an extra today.

    >>> command("mail")
    "pip install '.[mail]' in a checkout, pip install 'FILE.whl[mail]' else"
    """
    return FROM_SOURCE.format(extra=extra)
