#!lua flags=allow-oom
-- ack_attempts: take entries off a queue partition whose outcomes are handed in, or that nobody wants any more.
--
-- The step's place is freed only while it still names this entry: a newer attempt may be there already. Safe to run
-- twice.
--
-- KEYS   stream, steps, details
-- ARGV   group, then for each claim: entry, step
-- RETURNS OK / WRONGTYPE key
-- @include shared/holds
-- @include shared/place
local stream, steps, details = KEYS[1], KEYS[2], KEYS[3]
local group = ARGV[1]

if not holds(stream, 'stream') then return redis.error_reply('WRONGTYPE ' .. stream) end
if not holds(steps, 'hash') then return redis.error_reply('WRONGTYPE ' .. steps) end
if not holds(details, 'hash') then return redis.error_reply('WRONGTYPE ' .. details) end

for i = 2, #ARGV, 2 do
  if place_of(steps, ARGV[i + 1]) == ARGV[i] then redis.call('HDEL', steps, ARGV[i + 1]) end
  drop_entry(stream, details, group, ARGV[i])
end
return redis.status_reply('OK')
