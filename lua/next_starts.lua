#!lua flags=allow-oom
-- next_starts: return the runs whose starts wait, the next ones first, and note which turn has been reached.
--
-- They stay until the commit of their first transition removes them, so a crash loses nothing. `reached` is the turn
-- that was noted before: a former owner had read the starts up to it.
-- Safe to run twice: a turn that has been reached never goes back.
--
-- KEYS   owner, waiting, turns
-- ARGV   token, limit
-- RETURNS OK left reached, then for each run: id, turn (left: how many wait, these included)
--         / FENCED token / WRONGTYPE key
-- @include shared/holds
local owner, waiting, turns = KEYS[1], KEYS[2], KEYS[3]
local token = ARGV[1]

local stored = redis.call('HGET', owner, 'token') or ''
if stored ~= token then return {'FENCED', stored} end
if not holds(waiting, 'zset') then return redis.error_reply('WRONGTYPE ' .. waiting) end
if not holds(turns, 'zset') then return redis.error_reply('WRONGTYPE ' .. turns) end

local reached = tonumber(redis.call('ZSCORE', turns, '') or 0)
local found = redis.call('ZRANGE', waiting, 0, tonumber(ARGV[2]) - 1, 'WITHSCORES')
local last = math.max(reached, tonumber(found[#found] or 0))
if last > reached then
  redis.call('ZREMRANGEBYSCORE', turns, '-inf', '(' .. string.format('%.0f', last)) -- tenants that have caught up
  redis.call('ZADD', turns, last, '')
end
local reply = {'OK', redis.call('ZCARD', waiting), string.format('%.0f', reached)}
for i, value in ipairs(found) do reply[3 + i] = value end
return reply
