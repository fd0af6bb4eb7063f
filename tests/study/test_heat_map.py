"""Where the rank went: every site is drawn with its number, the darker the more it kept, and told in text as well."""

import re
from xml.etree import ElementTree

from lorica.adapter.ranks import RankGrid
from lorica.study import Report, html
from lorica.study.heat_map import heat_map

KEPT = {f"model.layers.{n}.{role}": count for n in (10, 2) for role, count in (("self_attn.q_proj", n), ("mlp.up", 0))}
KEPT["projector"] = 4


def cells(page: str) -> dict[str, float]:
    drawing = page.partition("</svg>")[0] + "</svg>"
    boxes = ElementTree.fromstring(drawing).iter("rect")
    return {str(box.findtext("title")): float(box.get("fill-opacity", "")) for box in boxes}


def test_sites_are_told_apart_by_role_and_layer_in_the_order_of_layers():
    grid = RankGrid.of(KEPT)
    assert grid.roles == ("self_attn.q_proj", "mlp.up", "projector")
    assert grid.layers == ("", "2", "10")
    assert (grid.total, grid.most) == (16, 10)


def test_an_encoder_and_a_decoder_are_told_apart():
    names = ("encoder.block.0.layer.0.SelfAttention.q", "decoder.block.0.layer.0.SelfAttention.q")
    grid = RankGrid.of(dict.fromkeys(names, 1))
    assert grid.roles == ("encoder.block.layer.0.SelfAttention.q", "decoder.block.layer.0.SelfAttention.q")
    alone = RankGrid.of({names[0]: 1})
    assert alone.roles == ("layer.0.SelfAttention.q",)


def test_every_site_is_drawn_the_darker_the_more_it_kept():
    found = cells(heat_map(RankGrid.of(KEPT)))
    assert len(found) == len(KEPT)
    shade = {int(title.rpartition(": ")[2]): value for title, value in found.items()}
    assert shade[0] == 0 < shade[2] < shade[4] < shade[10] == 1
    assert any(title.startswith("projector: 4") for title in found)


def test_a_deep_model_stays_inside_the_drawing():
    grid = RankGrid.of({f"model.layers.{n}.mlp.{role}": n for n in range(80) for role in ("up_proj", "down_proj")})
    page = heat_map(grid)
    assert max(float(x) for x in re.findall(r' x="([\d.]+)"', page)) < 760
    assert len(cells(page)) == 160
    assert 'class="on"' not in page, "numbers would overlap"


def test_the_report_has_it_where_there_is_something_to_draw():
    assert "Where the rank went" in html(Report(title="run", ranks=RankGrid.of(KEPT)))
    assert "Where the rank went" not in html(Report(title="run"))


def test_the_grid_is_a_table_in_text_too():
    lines = str(
        RankGrid.of({"model.layers.0.q_proj": 3, "model.layers.1.q_proj": 12, "model.layers.1.up": 0})
    ).splitlines()
    assert lines == [
        "singular values kept: 15 at 3 sites",
        "  layer    0  1",
        "  q_proj   3 12",
        "  up          0",
    ]
