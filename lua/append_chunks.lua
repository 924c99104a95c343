#!lua
-- append_chunks: append what a running attempt has emitted to its run's chunks, and ring for who reads them.
--
-- An attempt's chunks come in batches, numbered from 1; one that is there already changes nothing. Chunks are numbered
-- through the whole run, those that never got here (`missed`) included, so that readers see where some are missing.
-- Only for the run with this `created` while it is open, and only while the field of `holder` is what the caller expects:
-- it names who runs the attempt. So one that was replaced appends nothing: its owner's token is another one, or its
-- entry of the queue.
-- An execution is one try of an attempt in one process: when another one of the same step has appended before, or the
-- attempt isn't the first, the batch that begins it says that it restarts.
-- All is in one hash, which has about `limit` bytes: the oldest entries go first. It expires `seconds` after the last
-- batch. Refused when memory is short. Safe to run twice.
--
-- KEYS   run, chunks, holder
-- ARGV   created, field, expected, seq, attempt, execution, batch, over (1: the attempt has ended), missed, count,
--        limit, seconds, step, body (MessagePack)
-- RETURNS a (appended, or there already) / e (the run has ended) / m (there is no such run) / l (somebody else runs the
--         step) / WRONGTYPE key
-- @include shared/holds
local run, chunks, holder = KEYS[1], KEYS[2], KEYS[3]
local created, field, expected, seq, attempt, execution = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local batch, over, missed, count = tonumber(ARGV[7]), ARGV[8], tonumber(ARGV[9]), tonumber(ARGV[10])
local limit, seconds, step, body = tonumber(ARGV[11]), ARGV[12], ARGV[13], ARGV[14]
local OVERHEAD = 100 -- bytes of an entry besides its text, about
local STEP = '/' .. seq -- the field of a step: the attempt and execution that has appended last, its batch, whether it is over

if not holds(run, 'list') then return redis.error_reply('WRONGTYPE ' .. run) end
if not holds(chunks, 'hash') then return redis.error_reply('WRONGTYPE ' .. chunks) end
if not holds(holder, 'hash') then return redis.error_reply('WRONGTYPE ' .. holder) end
local status, of = string.match(redis.call('LINDEX', run, 0) or '', '^(%a+) %d+ %S+ (%d+)')
if of ~= created then return 'm' end
if status == 'completed' or status == 'failed' or status == 'cancelled' then return 'e' end
if redis.call('HGET', holder, field) ~= expected then return 'l' end

local known = redis.call('HMGET', chunks, 'created', 'first', 'next', 'chunks', 'bytes', STEP)
if known[1] ~= created then -- none yet, or those of an earlier run of this id
  redis.call('DEL', chunks)
  local time = redis.call('TIME')
  redis.call('HSET', chunks, 'created', created, 'made', string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)))
  known = {}
end
local before, last = string.match(known[6] or '', '^%d+ (%S+) (%d+)')
if before == execution and tonumber(last) >= batch then return 'a' end
local restarts = before ~= execution and (before or attempt ~= '1') and 1 or 0
local first, next = tonumber(known[2] or 1), tonumber(known[3] or 1)
local total = tonumber(known[4] or 0) + missed
local entry = string.format('%.0f %s %s %d %s %s\n', total + 1, seq, attempt, restarts, over, step) .. body
local bytes = tonumber(known[5] or 0) + #entry + OVERHEAD

while bytes > limit and first < next do
  local old = redis.call('HGET', chunks, first) or ''
  local of_seq, of_attempt, was_over = string.match(old, '^%d+ (%d+) (%d+) %d (%d)')
  if was_over == '1' and of_seq ~= seq then -- nothing more comes of that attempt
    local field_of = '/' .. of_seq
    if string.match(redis.call('HGET', chunks, field_of) or '', '^(%d+) %S+ %d+ 1$') == of_attempt then
      redis.call('HDEL', chunks, field_of)
    end
  end
  redis.call('HDEL', chunks, first)
  bytes, first = bytes - #old - OVERHEAD, first + 1
end
redis.call('HSET', chunks, next, entry, 'first', first, 'next', next + 1, 'chunks', string.format('%.0f', total + count),
  'bytes', bytes, STEP, string.format('%s %s %d %s', attempt, execution, batch, over))
redis.call('EXPIRE', chunks, seconds)
redis.pcall('SPUBLISH', chunks, '')
return 'a'
