//! The picture as PNG, in twice the size of the SVG.

use super::{Anchor, Picture};
use embedded_graphics::Drawable;
use embedded_graphics::Pixel;
use embedded_graphics::draw_target::DrawTarget;
use embedded_graphics::geometry::{OriginDimensions, Point, Size};
use embedded_graphics::mono_font::{MonoTextStyle, iso_8859_1::FONT_10X20};
use embedded_graphics::pixelcolor::{IntoStorage, Rgb888, RgbColor};
use embedded_graphics::primitives::{Primitive, PrimitiveStyle, Rectangle};
use embedded_graphics::text::{Alignment, Text};
use polykv::{Error, Plan, Result};
use std::convert::Infallible;

/// Pixels per unit of the picture: texts fit their places in the SVG.
const SCALE: usize = 2;
/// The format's own limit is far above.
const MOST_PIXELS: usize = 1 << 28;

/// The whole file.
///
/// # Errors
/// A picture too large for memory.
pub fn png(plan: &Plan) -> Result<Vec<u8>> {
    let picture = Picture::of(plan);
    let (width, height) = (picture.width * SCALE, picture.height * SCALE);
    if width.saturating_mul(height) > MOST_PIXELS {
        let found = format!("{width} by {height} pixels");
        return Err(Error::invalid(
            "picture",
            "size",
            found,
            "less than that as .png; .svg",
        ));
    }
    let mut canvas = Canvas {
        width,
        height,
        pixels: vec![0xff; width * height * 3],
    };
    let Ok(()) = draw(&picture, &mut canvas);
    let mut file = Vec::new();
    let failed = |e: png::EncodingError| Error::Failed(format!("a picture as PNG: {e}"));
    let mut encoder = png::Encoder::new(&mut file, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(&canvas.pixels).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(file)
}

fn draw(picture: &Picture, canvas: &mut Canvas) -> std::result::Result<(), Infallible> {
    let point = |x: usize, y: usize| Point::new((x * SCALE) as i32, (y * SCALE) as i32);
    for bar in &picture.bars {
        let [_, red, green, blue] = bar.colour.to_be_bytes();
        let size = Size::new((bar.width * SCALE) as u32, (bar.height * SCALE) as u32);
        let style = PrimitiveStyle::with_fill(Rgb888::new(red, green, blue));
        Rectangle::new(point(bar.x, bar.y), size)
            .into_styled(style)
            .draw(canvas)?;
    }
    let style = MonoTextStyle::new(&FONT_10X20, Rgb888::BLACK);
    for text in &picture.texts {
        let alignment = match text.anchor {
            Anchor::Start => Alignment::Left,
            Anchor::Middle => Alignment::Center,
            Anchor::End => Alignment::Right,
        };
        Text::with_alignment(&text.content, point(text.x, text.y), style, alignment)
            .draw(canvas)?;
    }
    Ok(())
}

/// Red, green and blue in rows from the top.
struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        Size::new(self.width as u32, self.height as u32)
    }
}

impl DrawTarget for Canvas {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I>(&mut self, pixels: I) -> std::result::Result<(), Infallible>
    where
        I: IntoIterator<Item = Pixel<Rgb888>>,
    {
        for Pixel(point, colour) in pixels {
            if let (Ok(x), Ok(y)) = (usize::try_from(point.x), usize::try_from(point.y))
                && x < self.width
                && y < self.height
            {
                let start = (y * self.width + x) * 3;
                let colour: u32 = colour.into_storage();
                self.pixels[start..start + 3].copy_from_slice(&colour.to_be_bytes()[1..]);
            }
        }
        Ok(())
    }
}
