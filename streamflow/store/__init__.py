"""The server: keys, scripts, connections. The only package that imports redis."""

from streamflow.store.redis_import import import_redis

import_redis()
