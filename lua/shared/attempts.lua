-- attempts: add attempts of steps to a partition of a queue, revoke them, and ring for its workers. The bell is the
-- sharded channel of the stream's name. One entry is one attempt, read through this consumer group.
--
-- Who adds entries always rings: a worker that listens and has a free slot reads the partition, until it is empty.
local WORKERS = 'workers' -- as in streamflow/store/kernel.py

local function create_group(stream)
  redis.pcall('XGROUP', 'CREATE', stream, WORKERS, '0', 'MKSTREAM') -- BUSYGROUP when it exists
end

-- Of an attempt: whether what is stored of its step is newer. `attempt`: `<created> <attempt>`, as it is stored.
local function is_newer_than(created, number, attempt)
  local other_created, other_number = string.match(attempt, '^(%d+) (%d+)$')
  other_created, other_number = tonumber(other_created), tonumber(other_number)
  return created > other_created or (created == other_created and number > other_number)
end

-- A newer attempt replaces the one before, whose entry is deleted; so does one of a run that was created later under the
-- same id. One that is there already stays with the worker that has it: a run whose retry is due decides about it
-- again at each of its owners until its outcome is there. Another call under the same number replaces it.
-- `reported`: details of the attempt before, nil for none. Returns whether there is a new entry.
local function add_attempt(stream, steps, details, step, attempt, body, reported)
  local entry, created, number, is_revoked = current_entry(steps, step)
  if entry then
    if is_newer_than(created, number, attempt) then return false end
    local found = redis.call('XRANGE', stream, entry, entry)[1]
    local is_same = found and not is_revoked and field_of(found[2], 'attempt') == attempt
    if is_same and field_of(found[2], 'body') == body then return false end
    drop_entry(stream, details, WORKERS, entry)
  end
  local added
  if reported then
    added = redis.call('XADD', stream, '*', 'step', step, 'attempt', attempt, 'body', body, 'details', reported)
  else
    added = redis.call('XADD', stream, '*', 'step', step, 'attempt', attempt, 'body', body)
  end
  redis.call('HSET', steps, step, added .. ' ' .. attempt .. ' wanted')
  return true
end

-- An entry that no worker has yet is deleted; one that a worker has is marked, and the worker's next `extend_claims`
-- returns `r` for it. What is newer stays.
local function revoke_attempt(stream, steps, details, step, attempt)
  local entry, created, number = current_entry(steps, step)
  if not entry or is_newer_than(created, number, attempt) then return end
  local found = redis.pcall('XPENDING', stream, WORKERS, entry, entry, 1)
  if not found.err and found[1] then
    redis.call('HSET', steps, step, encode_current_entry(entry, created, number, 'revoked'))
  else
    drop_entry(stream, details, WORKERS, entry)
    redis.call('HDEL', steps, step)
  end
end

local function ring_for_workers(stream)
  redis.pcall('SPUBLISH', stream, '')
end

-- The partitions whose keys are at these positions of KEYS, each with its stream, steps and details. The second result
-- is a key of another type, if there is one.
local QUEUE_KEYS = 3
local function open_queues(first, last)
  local queues = {}
  for i = first, last, QUEUE_KEYS do
    local queue = {stream = KEYS[i], steps = KEYS[i + 1], details = KEYS[i + 2], rings = false}
    local kind = redis.call('TYPE', queue.stream).ok
    queue.is_new = kind == 'none'
    if kind ~= 'stream' and kind ~= 'none' then return queues, queue.stream end
    if not holds(queue.steps, 'hash') then return queues, queue.steps end
    if not holds(queue.details, 'hash') then return queues, queue.details end
    queues[#queues + 1] = queue
  end
  return queues
end

-- So many attempts, behind a position of ARGV: each with queue, step, attempt and body ('' revokes it). `reported`:
-- details of the attempts before, by position.
local ATTEMPT_ARGS = 4
local function add_and_revoke(queues, count, at, reported)
  for i = 1, count do
    local queue, step, attempt, body = queues[tonumber(ARGV[at + 1])], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
    if body == '' then
      revoke_attempt(queue.stream, queue.steps, queue.details, step, attempt)
    else
      if queue.is_new then create_group(queue.stream) end
      queue.is_new = false
      local is_added = add_attempt(queue.stream, queue.steps, queue.details, step, attempt, body, reported[i])
      queue.rings = queue.rings or is_added
    end
    at = at + ATTEMPT_ARGS
  end
  for _, queue in ipairs(queues) do
    if queue.rings then ring_for_workers(queue.stream) end
  end
end
