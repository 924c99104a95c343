#!lua flags=allow-oom
-- heartbeat: store a daemon's or worker's heartbeat, remove members that are considered dead, and return all heartbeats.
--
-- Liveness only: each daemon watches the others' heartbeats change on its own monotonic clock. A member is removed only
-- if its heartbeat is still the one that was watched. Only a heartbeat that `joins` makes a member: one that arrives
-- late, after its daemon has left, changes nothing, and a daemon that was removed joins again. The server's time is
-- what a daemon compares its own clock with (`daemon/clock.py`). There may be many workers, and they need not know each
-- other: without `others` a heartbeat costs the same, however many there are. Whatever else is wanted with each heartbeat
-- comes in the same reply: small hashes of the namespace. Safe to run twice.
--
-- KEYS   members, then for each wanted: hash
-- ARGV   member,
--        heartbeat, ('' removes the member)
--        joins, ('' if it is a member already)
--        others, ('' if only the caller's own heartbeat is wanted)
--        then for each dead member: member, last_heartbeat
-- RETURNS ms (the server's time), heartbeats (member heartbeat… of all members, or of the caller if it is one), then for
--         each wanted: fields (field value…, nil if the key has another type) / WRONGTYPE key
-- @include shared/holds
local members = KEYS[1]
if not holds(members, 'hash') then return redis.error_reply('WRONGTYPE ' .. members) end

if ARGV[2] == '' then
  redis.call('HDEL', members, ARGV[1])
elseif ARGV[3] ~= '' or redis.call('HEXISTS', members, ARGV[1]) == 1 then
  redis.call('HSET', members, ARGV[1], ARGV[2])
end
for i = 5, #ARGV, 2 do
  if redis.call('HGET', members, ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', members, ARGV[i]) end
end
local heartbeats = {}
if ARGV[4] ~= '' then
  heartbeats = redis.call('HGETALL', members)
else
  local own = redis.call('HGET', members, ARGV[1])
  if own then heartbeats = {ARGV[1], own} end
end
local time = redis.call('TIME')
local reply = {string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)), heartbeats}
for i = 2, #KEYS do reply[#reply + 1] = holds(KEYS[i], 'hash') and redis.call('HGETALL', KEYS[i]) end
return reply
