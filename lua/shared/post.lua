-- post: put messages into the inbox, for runs that are open, numbered by their source.
local function post_all(keys, argv)
  local seen, owner = keys[1], keys[4]
  local FIXED_KEYS = 4
  local source, number = argv[1], tonumber(argv[2])

  local inbox = open_inbox(keys[2], keys[3])
  if inbox.err then return inbox end
  local last = redis.call('HGET', seen, source)
  if last then
    local last_number, _, last_letters = string.match(last, '^(%d+) (%d+) (%a*)$')
    if last_number and tonumber(last_number) >= number then return last_letters end
  end
  local letters = {}
  for i = 1, #keys - FIXED_KEYS do
    local header = redis.call('LINDEX', keys[FIXED_KEYS + i], 0)
    local status, created = string.match(header or '', '^(%a+) %d+ %S+ (%d+)')
    local wanted = argv[4 * i + 3]
    if not status or (wanted ~= '' and wanted ~= created) then
      letters[i] = 'm'
    elseif status == 'pending' or status == 'running' or status == 'stuck' then
      letters[i] = 'a'
    else
      letters[i] = 'e'
    end
  end
  local clock = shard_clock(argv[3], redis.call('HGET', owner, 'clock'))

  for i, letter in ipairs(letters) do
    if letter == 'a' then
      put_message(inbox, 'kind', argv[4 * i], 'run', argv[4 * i + 1], 'body', argv[4 * i + 2])
    end
  end
  local joined = table.concat(letters)
  redis.call('HSET', seen, source, string.format('%.0f %.0f %s', number, clock, joined))
  return joined
end
