#!lua flags=allow-oom
-- heartbeat: raise a daemon's sign of life, drop members that the caller saw die, and see everybody's.
--
-- Liveness only: the others watch the beats change on their own monotonic clocks. A member is dropped only if its beat is
-- still the one that was watched. Safe to run twice.
--
-- KEYS   members
-- ARGV   member, beat ('' takes the member off), then for each dead: member, last_beat
-- RETURNS member beat… of all members / WRONGTYPE key
-- @include shared/holds
local members = KEYS[1]
if not holds(members, 'hash') then return redis.error_reply('WRONGTYPE ' .. members) end

if ARGV[2] == '' then redis.call('HDEL', members, ARGV[1]) else redis.call('HSET', members, ARGV[1], ARGV[2]) end
for i = 3, #ARGV, 2 do
  if redis.call('HGET', members, ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', members, ARGV[i]) end
end
return redis.call('HGETALL', members)
