"""Every table of every slice, for the migration comparison; nothing else imports this."""

from pharos.access import models as access
from pharos.chat import models as chat
from pharos.identity import models as identity
from pharos.infra import models as infra
from pharos.infra.db import Table
from pharos.library import models as library
from pharos.ops import models as ops
from pharos.providers import models as providers

__all__ = ["access", "chat", "identity", "infra", "library", "metadata", "ops", "providers"]

metadata = Table.metadata
