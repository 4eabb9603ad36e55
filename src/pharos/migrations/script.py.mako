"""${message}

Revision ID: ${up_revision}
Phase: expand
"""

import sqlalchemy as sa
from alembic import op

from pharos.migrations.fence import fence

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("set local lock_timeout = '4s'")
    ${upgrades if upgrades else "pass"}
    # A new table with tenant_id: fence("its_name")


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
