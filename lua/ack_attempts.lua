#!lua flags=allow-oom
-- ack_attempts: remove entries from a queue partition: their outcomes are reported, or they are not needed any more.
--
-- The step's current entry is cleared only while it is still this one: a newer attempt may have replaced it. Safe to
-- run twice: an entry that is gone changes nothing.
--
-- KEYS   stream, steps, details
-- ARGV   group, then for each claim: entry, step
-- RETURNS OK / WRONGTYPE key
-- @include shared/holds
-- @include shared/current_entry
local stream, steps, details = KEYS[1], KEYS[2], KEYS[3]
local group = ARGV[1]

if not holds(stream, 'stream') then return redis.error_reply('WRONGTYPE ' .. stream) end
if not holds(steps, 'hash') then return redis.error_reply('WRONGTYPE ' .. steps) end
if not holds(details, 'hash') then return redis.error_reply('WRONGTYPE ' .. details) end

for i = 2, #ARGV, 2 do
  if current_entry(steps, ARGV[i + 1]) == ARGV[i] then redis.call('HDEL', steps, ARGV[i + 1]) end
  drop_entry(stream, details, group, ARGV[i])
end
return redis.status_reply('OK')
