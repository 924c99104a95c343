#!lua flags=allow-oom
-- expired_claims: return entries whose workers are considered dead, with the details that their steps reported last.
--
-- Nothing is given to another worker here: the caller reports to the run that the attempt is over, and the run decides
-- about another one. So a reply that is lost, or two callers at once, do no harm. Entries that were superseded are
-- deleted; consumers that were idle for `quiet` ms and have nothing pending are removed.
-- `clock` is the server's, by which claims are timed: callers compare it with their own. While there are claims, it is
-- kept beside the details: `before` is that of the last look of any worker, and tells a caller's first one that the
-- clock was set back. It stays until `restart_claims` has done its work, since a reply may be lost.
-- `attempt` is `<created> <attempt>`, as the commit has added it; `details` are '' if none were reported.
-- About a megabyte of entries is looked at in one call. `after` is the `last` of the call before: '' for the first.
--
-- KEYS   stream, steps, details
-- ARGV   group, idle (ms), quiet (ms), limit, after
-- RETURNS clock (ms) last (the entry behind which more are, '' if there are none) before (ms, '' for none)
--         then for each expired entry: entry consumer step attempt details / WRONGTYPE key
-- @include shared/clock
-- @include shared/holds
-- @include shared/current_entry
local stream, steps, details = KEYS[1], KEYS[2], KEYS[3]
local group, idle, quiet, limit, after = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local BYTES = 1024 * 1024
local SLACK = 1000 -- ms by which clocks may go back that are not set

if not holds(stream, 'stream') then return redis.error_reply('WRONGTYPE ' .. stream) end
if not holds(steps, 'hash') then return redis.error_reply('WRONGTYPE ' .. steps) end
if not holds(details, 'hash') then return redis.error_reply('WRONGTYPE ' .. details) end
local pending = redis.pcall('XPENDING', stream, group, 'IDLE', idle, after == '' and '-' or '(' .. after, '+', limit)
local clock = string.format('%.0f', shard_clock('', nil))
if pending.err then return {clock, '', ''} end

local before = redis.call('HGET', details, 'clock') or ''
local reply, bytes = {clock, '', before}, 0
for n, claim in ipairs(pending) do
  local entry, consumer = claim[1], claim[2]
  local fields = {}
  local found = redis.call('XRANGE', stream, entry, entry)[1]
  for i = 1, found and #found[2] or 0, 2 do
    fields[found[2][i]] = found[2][i + 1]
    bytes = bytes + #found[2][i + 1]
  end
  if found and current_entry(steps, fields.step or '') == entry then
    local reported = redis.call('HGET', details, entry) or fields.details or ''
    bytes = bytes + #reported
    for _, value in ipairs({entry, consumer, fields.step, fields.attempt or '', reported}) do
      reply[#reply + 1] = value
    end
  else
    drop_entry(stream, details, group, entry)
  end
  if n == limit or bytes >= BYTES then
    reply[2] = entry
    break
  end
end
if redis.call('XPENDING', stream, group)[1] == 0 then
  if before ~= '' then redis.call('HDEL', details, 'clock') end
elseif (tonumber(before) or 0) <= tonumber(clock) + SLACK then
  redis.call('HSET', details, 'clock', clock)
end
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
  local facts = {}
  for i = 1, #consumer, 2 do facts[consumer[i]] = consumer[i + 1] end
  if facts.pending == 0 and tonumber(facts.idle) > quiet then
    redis.call('XGROUP', 'DELCONSUMER', stream, group, facts.name)
  end
end
return reply
