#!lua flags=allow-oom
-- report_step: put the outcome of a step that a former owner of the shard has run into the inbox of its run.
--
-- `kind` is `outcome`, or `returned` for an attempt that has none and is to run again. The step's record is marked as
-- reported, so that no owner starts the attempt before it reads the message: only if it is of this very attempt, because
-- an owner waits forever for one that is marked. Without its record an attempt isn't returned: the owner runs it itself
-- or doesn't need it. Of a run that has ended nobody else would delete a record that was written behind its end.
-- Safe to run twice: what is marked already adds nothing.
--
-- KEYS   inbox, kept, run, steps, details
-- ARGV   id, created, kind, step, host, attempt, body
-- RETURNS a (accepted), e (the run has ended) or m (no such run, or it is another one) / WRONGTYPE key
-- @include shared/holds
-- @include shared/inbox
local run, steps, details = KEYS[3], KEYS[4], KEYS[5]
local created, kind, step = ARGV[2], ARGV[3], ARGV[4]

local inbox = open_inbox(KEYS[1], KEYS[2])
if inbox.err then return inbox end
if not holds(steps, 'hash') then return redis.error_reply('WRONGTYPE ' .. steps) end
if not holds(details, 'hash') then return redis.error_reply('WRONGTYPE ' .. details) end
local attempt = ARGV[5] .. ' ' .. created .. ' ' .. ARGV[6] .. ' '
local stored = redis.call('HGET', steps, step)
local header = redis.call('LINDEX', run, 0)
local status, created_now = string.match(header or '', '^(%a+) %d+ %S+ (%d+)')
local is_open = status == 'pending' or status == 'running' or status == 'stuck' or status == 'paused'
if created_now ~= created or not is_open then
  if stored == attempt .. 'wanted' then
    redis.call('HDEL', steps, step)
    local reported = redis.call('HGET', details, step)
    local head = string.match(reported or '', '^(%d+) ') or '' -- with or without the time, in 20 digits
    if head == created or #head == #created + 20 and string.sub(head, 1, #created) == created then
      redis.call('HDEL', details, step)
    end
  end
  return created_now == created and 'e' or 'm'
end

local is_lent = stored == attempt .. 'wanted'
if stored ~= attempt .. 'reported' and (is_lent or kind == 'outcome') then
  put_message(inbox, 'kind', kind, 'run', ARGV[1], 'body', ARGV[7])
end
if is_lent then redis.call('HSET', steps, step, attempt .. 'reported') end
return 'a'
