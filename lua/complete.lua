#!lua flags=allow-oom
-- complete: hand in the outcome of a queued step to the run that waits for it.
--
-- Safe to run twice: the outcome carries its attempt, and the run drops every outcome of an attempt that isn't current.
--
-- KEYS   inbox, run
-- ARGV   id, body
-- RETURNS a (accepted), e (the run has ended) or m (no such run) / WRONGTYPE key
-- @include shared/holds
local inbox, run = KEYS[1], KEYS[2]

if not holds(inbox, 'stream') then return redis.error_reply('WRONGTYPE ' .. inbox) end
local header = redis.call('LINDEX', run, 0)
if not header then return 'm' end
local status = string.match(header, '^%a+')
if status ~= 'pending' and status ~= 'running' and status ~= 'stuck' then return 'e' end

redis.call('XADD', inbox, '*', 'kind', 'outcome', 'run', ARGV[1], 'body', ARGV[2])
return 'a'
