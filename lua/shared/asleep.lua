-- asleep: what is left of runs that were moved out of memory (`hibernate_runs`): each is a field of a bucket, a hash.
--
-- `<created> <version> <due> <object> <parent> <workflow>`: a dash for no due time, no parent, and a workflow whose name
-- is too long; of the parent's link a digest. The owner's field `asleep` counts them all. A verb that finds no record of
-- a run, where there are some, has to look into the run's bucket: if its caller has given no buckets, it answers ASLEEP,
-- has done nothing, and is called again with them. So who doesn't use this pays nothing for it.
local ENTRY = '^(%d+) (%d+) (%S+) (%x+) (%S+) (%S+)$'
local MOST_OF_ENTRY = 64 -- bytes: with a longer value the bucket would take twice the memory

local function some_sleep(stored)
  return stored and stored ~= '0' and string.match(stored, '^%d+$') ~= nil
end

local function digest_of_parent(parent)
  if parent == '-' then return parent end
  local sum = 0
  for i = 1, #parent do sum = (sum * 31 + string.byte(parent, i)) % 4294967296 end
  return string.format('%.0f', sum)
end

-- The header of a run that sleeps, as far as it is known; '' for none. Its third word is `asleep`, which no commit's is.
local function header_of_sleeper(bucket, id)
  local entry = redis.call('HGET', bucket, id) or ''
  local created, version, _, _, parent, workflow = string.match(entry, ENTRY)
  if not created then return '' end
  return table.concat({'running', version, 'asleep', created, '0', workflow, '-', '-'}, ' '), parent
end

-- The bucket, if it is the last key, and how many keys are before it.
local function bucket_behind(owner)
  local last, prefix = KEYS[#KEYS], string.sub(owner, 1, #owner - #'owner') .. 'asleep:'
  if string.sub(last, 1, #prefix) == prefix then return last, #KEYS - 1 end
  return nil, #KEYS
end

local function bucket_member(bucket) -- on the agenda: no run id begins with a dash
  return '-' .. string.match(bucket, '([^:]+)$')
end
