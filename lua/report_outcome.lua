#!lua flags=allow-oom
-- report_outcome: put the outcome of a queued step that the server may have lost into the inbox of its run again.
--
-- `created` is that of the run whose step it was: a newer run of the same id has steps of the same numbers, and waits
-- for its own. Safe to run twice: the outcome carries its attempt, and the run drops every outcome of an attempt that
-- isn't current.
--
-- KEYS   inbox, kept, run
-- ARGV   id, created, body
-- RETURNS a (accepted), e (the run has ended) or m (no such run, or it is another one) / WRONGTYPE key
-- @include shared/inbox
local run = KEYS[3]

local inbox = open_inbox(KEYS[1], KEYS[2])
if inbox.err then return inbox end
local header = redis.call('LINDEX', run, 0)
if not header then return 'm' end
local status, created = string.match(header, '^(%a+) %d+ %S+ (%d+)')
if created ~= ARGV[2] then return 'm' end
if status ~= 'pending' and status ~= 'running' and status ~= 'stuck' and status ~= 'paused' then return 'e' end

put_message(inbox, 'kind', 'outcome', 'run', ARGV[1], 'body', ARGV[3])
return 'a'
