"""Image sheets and denoised images show the pixels they are given."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from pyro_mixtures.diagnostics import plot_denoised, plot_image_sheet
from pyro_mixtures.errors import DataError, OptionError
from tests.diagnostics.plots.rendering import draw


class TestImageSheet:
    def test_images_are_sorted_on_the_sheet(self):
        images = torch.arange(5.0).repeat_interleave(6).reshape(5, 6)
        order = torch.tensor([0.1, 0.5, 0.2, 0.9, 0.3])
        ax = plot_image_sheet(images, shape=(2, 3), order=order, columns=3)
        sheet = ax.get_images()[0].get_array().filled(np.nan)
        assert sheet.shape == (5, 11)
        np.testing.assert_array_equal(sheet[0], [3, 3, 3, np.nan, 1, 1, 1, np.nan, 4, 4, 4])
        np.testing.assert_array_equal(sheet[3], [2, 2, 2, np.nan, 0, 0, 0] + [np.nan] * 4)
        assert np.isnan(sheet[2]).all()
        draw(ax)

    def test_pixels_are_arranged_as_extract_patches_flattens_them(self):
        from pyro_mixtures.data import extract_patches

        photograph = torch.rand(4, 5)
        ax = plot_image_sheet(extract_patches(photograph, 4)[1:], shape=(4, 4))
        np.testing.assert_allclose(ax.get_images()[0].get_array(), photograph[:, 1:], rtol=1e-6)

    def test_contrast(self):
        images = np.stack([np.linspace(0, 1, 4), np.linspace(10, 30, 4)])
        each = plot_image_sheet(images, shape=(2, 2), contrast="each").get_images()[0]
        np.testing.assert_allclose(each.get_array()[:, 3:], each.get_array()[:, :2])
        shared = plot_image_sheet(images, shape=(2, 2)).get_images()[0]
        assert shared.norm.vmin == pytest.approx(np.percentile(images, 1))
        assert shared.norm.vmax == pytest.approx(np.percentile(images, 99))

    def test_constant_and_color_images(self):
        draw(plot_image_sheet(np.ones((3, 4)), shape=(2, 2)))
        draw(plot_image_sheet(np.ones((3, 4)), shape=(2, 2), contrast="each"))
        ax = plot_image_sheet(np.random.default_rng(0).random((3, 12)), shape=(2, 2, 3), columns=2)
        assert ax.get_images()[0].get_array().shape == (5, 5, 3)
        draw(ax)

    @pytest.mark.parametrize(("images", "lines", "columns"), [(18, 3, 6), (400, 20, 20), (2, 1, 2)])
    def test_a_sheet_is_twice_as_wide_as_high(self, images, lines, columns):
        sheet = plot_image_sheet(np.ones((images, 4)), shape=(2, 2)).get_images()[0].get_array()
        assert sheet.shape == (3 * lines - 1, 3 * columns - 1)

    def test_count_and_title(self):
        ax = Figure().subplots()
        assert plot_image_sheet(np.ones((9, 4)), shape=(2, 2), count=4, ax=ax) is ax
        assert ax.get_title() == "4 of 9 component means"
        assert ax.get_images()[0].get_array().shape == (
            5,
            8,
        )  # lines of three and one
        assert plot_image_sheet(np.ones((9, 4)), shape=(2, 2), title="Means").get_title() == "Means"
        order = [-np.inf, 0, *range(7)]  # log weights: dropped components come last
        assert (
            plot_image_sheet(np.ones((9, 4)), shape=(2, 2), order=order).get_title()
            == "9 component means"
        )

    @pytest.mark.parametrize(
        ("images", "options", "error", "message"),
        [
            (np.ones((3, 5)), {}, DataError, r"\(3, 5\) are not rows of \(2, 2\) images"),
            (np.ones((0, 4)), {}, DataError, "are not rows of"),
            (np.ones((3, 4)), {"order": np.ones(2)}, DataError, r"order has shape \(2,\)"),
            (np.ones((3, 4)), {"contrast": "more"}, OptionError, "unknown contrast='more'"),
            (np.ones((3, 4)), {"columns": 0}, OptionError, "columns=0"),
            (np.ones((3, 4)), {"count": 0}, OptionError, "count=0"),
            (np.ones((3, 4)), {"columns": 2.5}, OptionError, "columns=2.5"),
            (np.ones((3, 4)), {"count": 1.0}, OptionError, "count=1.0"),
            (np.ones((3, 4)), {"order": [1, np.nan, 2]}, DataError, "order contains NaN"),
            (np.full((3, 4), np.nan), {}, DataError, "images contains NaN or infinity"),
        ],
    )
    def test_refusals(self, images, options, error, message):
        with pytest.raises(error, match=message):
            plot_image_sheet(images, shape=(2, 2), **options)


class TestDenoised:
    def test_images_and_psnr(self):
        clean = torch.rand(6, 8)
        noisy, denoised = clean + 0.2, clean - 0.02
        axes = plot_denoised(noisy, denoised, clean, peak=2.0)
        assert axes.shape == (1, 3)
        for ax, image in zip(axes[0], (noisy, denoised, clean), strict=True):
            np.testing.assert_allclose(ax.get_images()[0].get_array(), image, rtol=1e-6)
            assert ax.get_images()[0].norm.vmax == 2.0
        # 10 log10(2^2 / 0.2^2) = 20, and a tenth of the error adds 20 dB.
        assert [ax.get_title() for ax in axes[0]] == [
            "Noisy\nPSNR 20.0 dB",
            "Denoised\nPSNR 40.0 dB",
            "Clean",
        ]
        draw(axes[0, 0])

    def test_psnr_of_nan_and_of_equal_images(self):
        clean = np.full((4, 4), 0.5)
        titles = [ax.get_title() for ax in plot_denoised(clean * np.nan, clean.copy(), clean)[0]]
        assert titles == ["Noisy\nPSNR nan dB", "Denoised\nPSNR inf dB", "Clean"]
        titles = [ax.get_title() for ax in plot_denoised(clean, clean, clean)[0]]
        assert titles == ["Noisy\nPSNR inf dB", "Denoised\nPSNR inf dB", "Clean"]

    def test_without_a_clean_image(self):
        axes = plot_denoised(np.zeros((4, 4, 3)), np.ones((4, 4, 3)), titles=["Before", "After"])
        assert [ax.get_title() for ax in axes[0]] == ["Before", "After"]
        draw(axes[0, 0])

    def test_crops_are_enlarged_below(self):
        image = np.random.default_rng(0).random((6, 8))
        axes = plot_denoised(image, image, crop=(1, 3, 4))
        assert axes.shape == (2, 2)
        np.testing.assert_array_equal(axes[1, 0].get_images()[0].get_array(), image[1:5, 3:7])
        assert axes[0, 0].patches[0].get_bbox().bounds == (2.5, 0.5, 4.0, 4.0)
        draw(axes[0, 0])

    def test_draws_in_existing_axes(self):
        axes = Figure().subplots(1, 2)
        assert plot_denoised(np.zeros((4, 4)), np.zeros((4, 4)), axes=axes)[0, 1] is axes[1]

    @pytest.mark.parametrize(
        ("images", "options", "error", "message"),
        [
            ((np.ones((4, 4)), np.ones((4, 5))), {}, DataError, "differ in shape"),
            ((np.ones(4), np.ones(4)), {}, DataError, "an image is"),
            ((np.full((4, 4), 128), np.full((4, 4), 128)), {}, DataError, "peak=1.0"),
            ((np.ones((4, 4)), np.ones((4, 4))), {"titles": ["one"]}, OptionError, "for 2 images"),
            (
                (np.ones((4, 4)), np.ones((4, 4))),
                {"crop": (2, 2, 3)},
                OptionError,
                "does not lie in",
            ),
            ((np.ones((4, 4)), np.ones((4, 4))), {"crop": (0, 5)}, OptionError, r"crop=\(0, 5\)"),
            ((np.ones((4, 4)), np.ones((4, 4))), {"crop": (0, 0, 2.0)}, OptionError, "crop=2.0"),
            ((np.ones((4, 4)), np.ones((4, 4))), {"peak": 0}, OptionError, "peak=0"),
            (
                (np.ones((4, 4)), np.ones((4, 4))),
                {"axes": Figure().subplots(1, 3)},
                OptionError,
                "3 axes for 1 x 2",
            ),
        ],
    )
    def test_refusals(self, images, options, error, message):
        with pytest.raises(error, match=message):
            plot_denoised(*images, **options)


@pytest.mark.parametrize("title", ["in $ {a $", "a$b$c"])
def test_titles_are_drawn_verbatim(title):
    """Matplotlib would parse text between two dollar signs as TeX."""
    clean = np.full((4, 4), 0.5)
    for ax in (
        plot_image_sheet(np.ones((3, 64)), title=title),
        plot_denoised(clean, clean, titles=[title] * 2)[0, 0],
    ):
        draw(ax)
        assert ax.get_title() == title
        assert not ax.title.get_parse_math()
