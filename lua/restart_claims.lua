#!lua flags=allow-oom
-- restart_claims: let all claims on the entries of a queue partition begin a new idle time, whichever worker has them.
--
-- For a server whose clock was set back: claims are timed by it, so those from before would not expire for as long as it
-- was set back. Live workers renew theirs before these expire; those of dead ones expire one time-out later.
-- The clock that `expired_claims` keeps is of the time before, and is deleted at the end.
-- Safe to run twice. `after` is the answer of the call before: '' for the first.
--
-- KEYS   stream, details
-- ARGV   group, limit, after
-- RETURNS last (the entry behind which more are, '' if there are none) / WRONGTYPE key
-- @include shared/holds
local stream, details = KEYS[1], KEYS[2]
local group, limit, after = ARGV[1], tonumber(ARGV[2]), ARGV[3]

if not holds(stream, 'stream') then return redis.error_reply('WRONGTYPE ' .. stream) end
if not holds(details, 'hash') then return redis.error_reply('WRONGTYPE ' .. details) end
local pending = redis.pcall('XPENDING', stream, group, after == '' and '-' or '(' .. after, '+', limit)
if pending.err then return '' end
for _, claim in ipairs(pending) do
  redis.call('XCLAIM', stream, group, claim[2], 0, claim[1], 'JUSTID')
end
if #pending == limit then return pending[limit][1] end
redis.call('HDEL', details, 'clock')
return ''
