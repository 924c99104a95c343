#!lua flags=allow-oom
-- store_records: set fields of hashes, or strings, that only describe: views, queues, which code has checked a shard.
--
-- For writes of the draining side that belong to no commit: as plain commands they would be refused when memory is
-- short. Safe to run twice.
--
-- KEYS   for each record: record
-- ARGV   for each record: field ('' for a string), value
-- RETURNS OK / WRONGTYPE key
-- @include shared/holds
for i, key in ipairs(KEYS) do
  if not holds(key, ARGV[2 * i - 1] == '' and 'string' or 'hash') then
    return redis.error_reply('WRONGTYPE ' .. key)
  end
end
for i, key in ipairs(KEYS) do
  local field, value = ARGV[2 * i - 1], ARGV[2 * i]
  if field == '' then redis.call('SET', key, value) else redis.call('HSET', key, field, value) end
end
return redis.status_reply('OK')
