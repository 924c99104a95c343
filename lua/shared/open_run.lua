-- open_run: write the first header of a new run, list it, and put its start into the inbox.
-- The header's format is that of streamflow/model/record.py; the start message carries it, so that the owner does not
-- have to load the run.
local function open_run(run, inbox, index, tenant_index, clock, id, workflow, tenant, parent, body)
  local header = table.concat({
    'pending', '0', '-', string.format('%.0f', clock), '0',
    workflow, tenant == '' and '-' or tenant, parent == '' and '-' or parent,
  }, ' ')
  redis.call('RPUSH', run, header, '')
  redis.call('ZADD', index, clock, id)
  if tenant ~= '' then redis.call('ZADD', tenant_index, clock, id) end
  redis.call('XADD', inbox, '*', 'kind', 'start', 'run', id, 'header', header, 'body', body)
  return header
end
