"""smoke"""

import pytest

from tests.healthcheck.site import Site, eventually

pytestmark = pytest.mark.servers


def test_opens(site: Site) -> None:
    site.start(standby=True)
    site.make_primary()
    site.make_standby()
    with site.one.client() as c, c.cursor() as cur:
        cur.execute("insert into chart values (1)")
    eventually(lambda: site.two.value("select max(id) from oscar.chart") == 1)
    print(site.watchdog_one.ask("/metrics")[1])
    print(site.watchdog_two.health())
    print(site.watchdog_one.health())
    print(site.watchdog_one.done("fence", epoch=1, polite=True, deadline_ms=3000))
    print(site.watchdog_one.health())
    print(site.watchdog_one.log_path.read_text())
    print(site.watchdog_two.log_path.read_text())
