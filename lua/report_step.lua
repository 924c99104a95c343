#!lua flags=allow-oom
-- report_step: put the outcome of a step that a former owner of the shard has run into the inbox of its run.
--
-- `kind` is `outcome`, or `returned` for an attempt that has none and is to run again. The step's record is marked as
-- reported, so that no owner starts the attempt before it reads the message. Safe to run twice: the outcome carries its
-- attempt, and the run drops every outcome of an attempt that isn't current.
--
-- KEYS   inbox, run, steps
-- ARGV   id, created, kind, step, body
-- RETURNS a (accepted), e (the run has ended) or m (no such run, or it is another one) / WRONGTYPE key
-- @include shared/holds
-- @include shared/current_entry
local inbox, run, steps = KEYS[1], KEYS[2], KEYS[3]
local step = ARGV[4]

if not holds(inbox, 'stream') then return redis.error_reply('WRONGTYPE ' .. inbox) end
if not holds(steps, 'hash') then return redis.error_reply('WRONGTYPE ' .. steps) end
local header = redis.call('LINDEX', run, 0)
if not header then return 'm' end
local status, created = string.match(header, '^(%a+) %d+ %S+ (%d+)')
if created ~= ARGV[2] then return 'm' end
if status ~= 'pending' and status ~= 'running' and status ~= 'stuck' then return 'e' end

redis.call('XADD', inbox, '*', 'kind', ARGV[3], 'run', ARGV[1], 'body', ARGV[5])
local host, of, attempt = current_entry(steps, step)
if host then redis.call('HSET', steps, step, encode_current_entry(host, of, attempt, 'reported')) end
return 'a'
