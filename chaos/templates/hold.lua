-- While no database is the primary a clinic's new connection waits here for a moment instead of being refused at once.
-- A planned change takes less than that. Clinics that come again every few milliseconds would take the processors that the
-- change needs, and would be told of an outage that is none. After WAIT_MS it goes on, and is refused as ever.
-- HAProxy's own checks decide what is up: who holds a connection back here is nobody but this HAProxy, and never for longer.
local WAIT_MS, LOOK_MS = 1000, 5

local function now_ms()
    local now = core.now()
    return now.sec * 1000 + now.usec / 1000
end

core.register_action("wait_for_primary", { "tcp-req" }, function(txn, backend)
    local give_up = now_ms() + WAIT_MS
    while txn.f:nbsrv(backend) == 0 and now_ms() < give_up do
        core.msleep(LOOK_MS)
    end
end, 1)
