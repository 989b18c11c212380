"""Expectations come from the metafiles alone."""

import pytest

from contnet_mm.reproduce.rows import (
    METRICS,
    TOLERANCES,
    Row,
    convert_metrics,
    find_zoo,
    list_tables,
    read_rows,
)


def test_published_rows_come_first_and_keep_their_order(root):
    rows = read_rows('tiny', root=root)
    assert [row.name for row in rows] == ['second', 'first']
    assert rows[0].expected() == {'Top 1 Accuracy': (60.0, 0.3)}
    assert rows[1].expected() == {}


def test_rows_are_chosen_by_patterns(root):
    assert [row.name for row in read_rows('tiny', ['f*'], root)] == ['first']
    with pytest.raises(ValueError, match='no row of tiny matches nothing; there are first, second'):
        read_rows('tiny', ['nothing'], root)
    with pytest.raises(ValueError, match="'tny' is no table; did you mean tiny"):
        read_rows('tny', root=root)


def test_published_rows_can_be_taken_alone(root):
    assert [row.name for row in read_rows('tiny', root=root, published=True)] == ['second']
    with pytest.raises(ValueError, match='no published row of tiny matches f.*; there are second'):
        read_rows('tiny', ['f*'], root, published=True)


def test_every_table_of_ours_can_be_read():
    tables = list_tables()
    assert {'retinanet', 'fcos', 'faster_rcnn', 'mask_rcnn', 'pspnet', 'contnet', 'demo'} <= {
        *tables
    }
    rows = [row for table in tables for row in read_rows(table)]
    judged = [row for row in rows if row.expected()]
    assert len(judged) >= 28 and all(set(row.expected()) <= set(TOLERANCES) for row in judged)


def test_measured_values_count_where_none_is_published_with_their_spread():
    row = Row('t', 'n', 'c', measured={'mIoU': 30.0, 'box AP s': 5.0}, spread={'mIoU': 2.0})
    assert row.expected() == {'mIoU': (30.0, 6.0)}
    row = Row('t', 'n', 'c', measured={'mIoU': 30.0, 'box AP': 9.0}, spread={'mIoU': 0.1})
    assert row.expected() == {'box AP': (9.0, 3.0), 'mIoU': (30.0, 0.5)}


def test_every_library_row_has_weights_in_the_installed_metafiles():
    names = {row.zoo for table in list_tables() for row in read_rows(table) if row.zoo}
    assert len(names) >= 6
    known = {name: find_zoo(name) for name in names}
    assert known['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'].metrics['box AP'] == 36.5
    assert all(zoo.weights.startswith('https://') and zoo.metrics for zoo in known.values())


def test_a_zoo_config_that_no_metafile_names_is_refused():
    with pytest.raises(ValueError, match='names no weights of mmdet::retinanet/nothing.py'):
        find_zoo('mmdet::retinanet/nothing.py')
    with pytest.raises(ValueError, match='mmnothing is not installed'):
        find_zoo('mmnothing::x/y.py')


def test_logged_metrics_become_those_of_metafiles():
    logged = {'coco/bbox_mAP': 0.365, 'coco/bbox_mAP_l': -1.0, 'mIoU': 77.1, 'time': 0.2}
    assert convert_metrics(logged) == {'box AP': 36.5, 'mIoU': 77.1}
    assert len({key for key, *_ in METRICS.values()}) == len(METRICS)
