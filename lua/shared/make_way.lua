-- make_way: a run that has ended goes, so that another one can have its id in the same step.

local function has_ended(header)
  local status = string.match(header, '^%a+')
  return status == 'completed' or status == 'failed' or status == 'cancelled'
end

-- The record goes with its history, what the run published and emitted, and its entries in the listings, which are the
-- keys from `first` to `last_key`. As with `forget_runs`, the shard's clock is set behind creation and end of the run, so that the new one was
-- created later: call this before the new one gets its time.
local function make_way(owner, header, run, published, chunks, first, last_key)
  local created, ended = string.match(header, '^%a+ %d+ %S+ (%d+) (%d+)')
  local last = math.max(tonumber(created), tonumber(ended))
  if last >= stored_clock(redis.call('HGET', owner, 'clock')) then
    redis.call('HSET', owner, 'clock', string.format('%.0f', last + 1))
  end
  local id = string.sub(run, run_id_begins(owner))
  for i = first, last_key do redis.call('ZREM', KEYS[i], id) end
  redis.call('UNLINK', run, published, chunks) -- the server frees large ones beside its work
end
