-- run_id: where the id begins in the key of a run. It isn't sent beside the key: an argument costs as much as a third of a
-- command. All keys of a shard begin with the same prefix (streamflow/store/keys.py).
local function run_id_begins(owner)
  return #owner - #'owner' + #'run:' + 1
end
